"""Everything that is drawn: pages, plots, montages and answer sheets."""
