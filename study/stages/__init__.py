"""The stages of a study, one module each, and the report and export that are written at the end.

`base` defines the interface of a stage; `order` lists all stages."""
