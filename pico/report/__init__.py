"""The report: one page, the suite's table, and the data of `dvc plots`."""
