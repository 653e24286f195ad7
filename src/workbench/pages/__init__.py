"""What people look at: the report's page, the comparison's page, tables for the terminal, and charts."""
