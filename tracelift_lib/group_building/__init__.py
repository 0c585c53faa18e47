"""TraceLift-Groups from public seeds: `python -m tracelift_lib.group_building --help`.

seeds → kinds of flaw, made exactly (text_makers for calculations, code_makers for plans of programs) or by a language
model (llm_maker) → checks → judge → group_files, data_card. The stage `groups` of a preset with `groups.seeds`.
"""
