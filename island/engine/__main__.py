"""Entry point of `python -m island.engine`."""

from island.engine.main import main

raise SystemExit(main())
