"""What the pages take from other files: measured numbers, and code.

python -m docs.results            # writes them into docs/ and both README.md
python -m docs.results --check    # shows what they would change, and fails

A page holds the numbers and the code themselves, so that it can be read anywhere, and
says in comments where they come from. Between `<!-- results: EXPRESSION -->` and
`<!-- end -->` stands a table or a block of code, and in front of
`<!-- = EXPRESSION -->` a number. The expressions call the functions in `pages.NAMES`;
`tables.toml` says what each table shows.
"""
