/*-------------------------------------------------------------------------
 *
 * commit_level.h
 *	  How durable the open transaction's commit is to be.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_COMMIT_LEVEL_H
#define COORD_COMMIT_LEVEL_H

#include "postgres.h"

extern void commit_level_attach(void);
extern bool commit_may_be_late(void);
extern void commit_late(bool nothing_else);
extern void commit_durably(void);

#endif							/* COORD_COMMIT_LEVEL_H */
