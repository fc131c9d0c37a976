"""Installing foreign servers: fetched confined, pinned by hash, all or nothing."""
