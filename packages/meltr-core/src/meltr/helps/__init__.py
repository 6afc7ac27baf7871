"""Does it help? Small test beds with known truth, on which every way to weigh losses is compared over many seeds."""
