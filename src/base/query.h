/*-------------------------------------------------------------------------
 *
 * query.h
 *	  The one way to coord's tables: SPI with saved plans.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_QUERY_H
#define COORD_QUERY_H

#include "executor/spi.h"

#include "base/identity.h"

#define QUERY_MAX_ARGS 32

/*
 * A statement of coord's own.  Declare it static; "plan" is filled in on first
 * use and lives as long as the process.
 */
typedef struct Statement
{
	const char *sql;
	int			nargs;
	Oid			argtypes[QUERY_MAX_ARGS];
	SPIPlanPtr	plan;
} Statement;

/* What query_begin() changed and query_end() puts back. */
typedef struct QueryScope
{
	Identity	identity;
	int			guc_level;		/* 0: search_path was already ours */
	bool		snapshot;		/* pushed one */
	MemoryContext context;
} QueryScope;

extern void query_begin(QueryScope *scope);
extern uint64 query_run(Statement *statement, Datum *values, const bool *nulls, long limit);
extern uint64 query_run_latest(Statement *statement, Datum *values, const bool *nulls, long limit);
extern void query_utility(const char *sql);
extern void query_end(QueryScope *scope);

extern Datum query_value(uint64 row, int column, bool *isnull);
extern char *query_text(MemoryContext context, uint64 row, int column);
extern Datum query_copy(MemoryContext context, uint64 row, int column, bool *isnull);

#endif							/* COORD_QUERY_H */
