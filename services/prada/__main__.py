"""`python -m services.prada`"""

from services.prada.app import main

main()
