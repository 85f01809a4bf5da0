"""Commands: one public function each, shared by Python and the command line."""
