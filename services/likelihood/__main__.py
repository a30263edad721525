"""`python -m services.likelihood`"""

from services.likelihood.app import main

main()
