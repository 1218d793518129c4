"""What the pages share: frame, state and URL, memos, and widgets used by two pages or more. Streamlit lives here."""
