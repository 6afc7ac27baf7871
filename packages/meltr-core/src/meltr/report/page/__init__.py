"""The page of `meltr report`: one HTML file that answers which configuration won, and shows why."""
