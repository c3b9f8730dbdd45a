/*-------------------------------------------------------------------------
 *
 * foreign_write.h
 *	  Writes to foreign tables; see foreign_write.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_FOREIGN_WRITE_H
#define COORD_FOREIGN_WRITE_H

#include "postgres.h"

extern void foreign_write_install(void);
extern void foreign_write_note(Oid relation);
extern void foreign_write_check(void);

#endif							/* COORD_FOREIGN_WRITE_H */
