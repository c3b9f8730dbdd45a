/*-------------------------------------------------------------------------
 *
 * runtime.h
 *	  Background processes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_RUNTIME_H
#define COORD_RUNTIME_H

#include "postgres.h"

#include "base/doorbell.h"

/* launcher.c */
extern void launcher_register(void);
extern PGDLLEXPORT void coord_launcher_main(Datum arg);
extern int	launcher_spawn(DatabaseSlot *slot, Oid role, bool *exhausted);

/* worker.c */
extern PGDLLEXPORT void coord_worker_main(Datum arg);

/* databases.c */
extern void databases_install_hook(void);

#endif							/* COORD_RUNTIME_H */
