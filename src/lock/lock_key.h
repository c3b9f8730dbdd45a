/*-------------------------------------------------------------------------
 *
 * lock_key.h
 *	  Names, modes and their tags in PostgreSQL's lock manager.
 *
 * See lock_key.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_LOCK_KEY_H
#define COORD_LOCK_KEY_H

#include "postgres.h"

#include "fmgr.h"
#include "storage/lock.h"

/* A name, as far as locks are concerned. */
typedef struct LockKey
{
	uint64		hash;
	uint8		more;
} LockKey;

/*
 * The fourth field of an advisory tag; eight bits of the name are added.  Core
 * uses 1 and 2, Citus 4 to 16, and pg_locks shows it as an int2.
 */
typedef enum LockSpace
{
	SPACE_LOCK = 0x4D00,		/* coord.lock() */
	SPACE_FENCE = 0x4E00,		/* share: fenced transactions; exclusive: a grant */
	SPACE_GATE = 0x4F00,		/* the queue for a lease */
	SPACE_SESSION = 0x5000		/* tells that a session's locks are still there */
} LockSpace;

/* In the order of lock_modes. */
typedef enum LockKind
{
	KIND_INTENT_SHARE,
	KIND_INTENT_EXCLUSIVE,
	KIND_SHARE,
	KIND_SHARE_INTENT_EXCLUSIVE,
	KIND_EXCLUSIVE,
	KIND_LEASE					/* waits for a lease */
} LockKind;

extern const LOCKMODE lock_kind_modes[];

extern LockKey lock_key(const char *name);
extern void lock_tag(LOCKTAG *tag, const LockKey *key, LockSpace space);
extern int	lock_compare_tags(const LOCKTAG *a, const LOCKTAG *b);
extern LockKind lock_kind(FunctionCallInfo fcinfo, int argument);
extern const char *lock_kind_name(LockKind kind);
extern bool lock_session_scope(FunctionCallInfo fcinfo, int argument);
extern char *lock_name(FunctionCallInfo fcinfo, int argument);
extern void lock_check_text(const char *what, const char *text);
extern void lock_check_name(const char *name);

#endif							/* COORD_LOCK_KEY_H */
