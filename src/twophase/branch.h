/*-------------------------------------------------------------------------
 *
 * branch.h
 *	  The participants of the open transaction; see branch.c and commit.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_BRANCH_H
#define COORD_BRANCH_H

#include "postgres.h"

#include "twophase/gid.h"
#include "twophase/remote.h"

typedef enum BranchState
{
	BRANCH_OPEN,				/* its transaction is open, or is to be begun */
	BRANCH_FINISHING,			/* COMMIT went out */
	BRANCH_PREPARING,			/* PREPARE TRANSACTION went out */
	BRANCH_PREPARED,
	BRANCH_ENDED				/* committed or rolled back, and acknowledged */
} BranchState;

typedef struct Branch
{
	Remote	   *remote;
	BranchState state;
	int			level;			/* nest level over there; 0: no transaction yet */
	int			release;		/* savepoint to be released before the next one; 0: none */
	bool		poisoned;		/* it cannot be committed any more */
	bool		wrote;
	bool		immediate;		/* constraints are checked at once there */
	uint64		xid;			/* 0: none, or not known */
	char		gid[GID_SIZE];
} Branch;

/* Of the open transaction; branch.c owns them. */
extern Branch branches[COORD_MAX_PARTICIPANTS];
extern int	nbranches;
extern int64 branch_gtid;

/* branch.c */
extern void branch_be_ready(void);
extern Branch *branch_enlist(const char *server, int64 until);
extern PGresult *branch_execute(Branch *branch, const char *sql, int nvalues,
								const char *const *values, int64 until, bool keep,
								bool at_once);
extern void branch_check_statement(const char *sql);
extern void branch_send_begin(Branch *branch);
extern void branch_note_xid(Branch *branch, const PGresult *result);
extern void branch_roll_back_to(Branch *branch, int level);
extern void branch_forget_all(bool told);

/* commit.c */
extern void twophase_enlisted(void);
extern void twophase_check_open(void);
extern int64 twophase_take_gtid(void);

#endif							/* COORD_BRANCH_H */
