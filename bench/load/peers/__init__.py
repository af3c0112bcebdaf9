"""One file for each system that is put under load. `catalog` knows them all; nothing else knows one of them."""
