"""A language model as a judge of rationales: rubric, backends, cache, figures. Run `python -m train judge`."""
