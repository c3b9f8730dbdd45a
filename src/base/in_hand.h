/*-------------------------------------------------------------------------
 *
 * in_hand.h
 *	  What a worker has in hand; see in_hand.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_IN_HAND_H
#define COORD_IN_HAND_H

#include "postgres.h"

extern void in_hand_attach(int worker_slot);
extern void in_hand_detach(void);
extern void in_hand_enter(int64 saga, int64 definition, int ordinal, int phase, Oid owner);
extern bool in_hand_interrupted(void);
extern void in_hand_leave(void);
extern bool in_hand_is_suspect(int64 saga);
extern bool suspect_acquire(int64 saga);
extern void suspect_release(bool all);
extern bool suspect_charged(int64 saga, int ordinal, int phase, int item);
extern void suspect_charge(int64 saga, int ordinal, int phase, int item);
extern void suspect_clear(int64 saga);

#endif							/* COORD_IN_HAND_H */
