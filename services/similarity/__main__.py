"""`python -m services.similarity`"""

from services.similarity.app import main

main()
