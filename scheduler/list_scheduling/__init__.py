"""List schedules by priority: HEFT, CPOP, PEFT, m-ETF, m-SCT."""
