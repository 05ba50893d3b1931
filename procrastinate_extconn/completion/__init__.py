"""A job ends in the transaction of its task: `complete`, and what the worker then makes of the job."""
