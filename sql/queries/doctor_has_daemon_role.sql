-- Whether there is a role to grant to the daemon's login.
select to_regrole('recalcd_daemon') is not null as is_there
