"""`python -m strandline_console` is `strandline`."""

from strandline_console.app import main

if __name__ == "__main__":
    main()
