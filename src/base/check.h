/*-------------------------------------------------------------------------
 *
 * check.h
 *	  Arguments of public functions: required ones, names, near misses.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_CHECK_H
#define COORD_CHECK_H

#include "postgres.h"

#include "fmgr.h"
#include "nodes/pg_list.h"

#define CHECK_NAME_MAX 200

extern void check_required(FunctionCallInfo fcinfo, int argument, const char *name);
extern char *check_text(FunctionCallInfo fcinfo, int argument, const char *name);
extern char *check_optional_text(FunctionCallInfo fcinfo, int argument);
extern void check_name(const char *what, const char *name);
extern void check_nonatomic(FunctionCallInfo fcinfo, const char *procedure);
extern void check_not_in_recovery(const char *what);
extern char *check_near_names(const char *name, List *candidates);

#endif							/* COORD_CHECK_H */
