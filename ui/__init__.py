"""The two ways a person reaches Apportion: the command line and the Streamlit app."""
