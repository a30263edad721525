"""`python -m services.tmsp`"""

from services.tmsp.app import main

main()
