/*-------------------------------------------------------------------------
 *
 * commit.h
 *	  The commit protocol's parts, for who commits in other ways; see commit.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_COMMIT_H
#define COORD_COMMIT_H

#include "postgres.h"

#include "access/xlogdefs.h"

extern bool twophase_is_replicated(XLogRecPtr lsn);
extern void twophase_begin_commit(void);
extern void twophase_send_prepares(void);
extern void twophase_gather_votes(void);
extern void twophase_decide(void);
extern void twophase_phase_two(int64 gtid, bool wait);

#endif							/* COORD_COMMIT_H */
