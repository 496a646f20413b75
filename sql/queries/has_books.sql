-- Whether recalcd migrate keeps its books here, that is, whether anything of recalcd is installed.
select to_regclass('outbox.migration') is not null and to_regclass('outbox.routine') is not null as has_books;
