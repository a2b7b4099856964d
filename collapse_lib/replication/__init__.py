"""What run_all.py drives: finds the notebooks, executes each in a process of its own, checks and reports what came out.

catalogue -> plan (what is current, what must run) -> execution -> report (its page, its record), publish; compare reads
two reports or records. No notebook imports any of it.
"""
