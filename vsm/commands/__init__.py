"""One module a command: `add_parser(subparsers)` and `run(args) -> exit code`.

Everything here runs as the person at the terminal. A module imports what its command needs and no
more; nothing imports pydantic, numpy, the SDK or asyncio to print a table.
"""
