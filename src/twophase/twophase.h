/*-------------------------------------------------------------------------
 *
 * twophase.h
 *	  Two-phase commit, for the rest of coord.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_TWOPHASE_H
#define COORD_TWOPHASE_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "nodes/parsenodes.h"
#include "utils/jsonb.h"

/* twophase_shared.c */
extern Size twophase_shmem_size(void);
extern bool twophase_wants_resolver(Oid database, TimestampTz now, TimestampTz *again);
extern void twophase_resolver_spawn(Oid database, Oid role);
extern void twophase_stop_resolver(Oid database, bool force);
extern bool twophase_resolver_is_gone(Oid database);
extern void twophase_database_started(void);

/* twophase_app.c */
extern void twophase_register_machine(void);
extern TimestampTz twophase_app_sweep(void);

/* remote_step.c */
extern Jsonb *twophase_call(const char *server, const char *function, Jsonb *document);
extern void twophase_check_server(const char *name);
extern bool twophase_in_use(void);

/* resolver.c */
extern PGDLLEXPORT void coord_resolver_main(Datum arg);

/* twophase_drop.c */
extern void twophase_drop_install(void);
extern void twophase_hold_mapping(Oid mapping);
extern void twophase_check_drop(Node *statement);

#endif							/* COORD_TWOPHASE_H */
