-- Nothing to make: what roles may do in the schemas school and reports is declared in reports.privileges, and row security
-- is switched on by reports.enable_row_security. The number marks the way back, which must take both away.
select;
