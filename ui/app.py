"""The Streamlit app: `streamlit run ui/app.py`, or `apportion ui`."""

from pathlib import Path

import streamlit as st

from ui.forms import keep_answers

PAGES = Path(__file__).parent / "app_pages"

st.set_page_config(page_title="Apportion", layout="wide")
keep_answers()
st.navigation(
    [
        st.Page(PAGES / "plan.py", title="Plan", default=True),
        st.Page(PAGES / "what_if.py", title="What-if", url_path="what-if"),
        st.Page(PAGES / "run.py", title="Run", url_path="run"),
    ]
).run()
