/*-------------------------------------------------------------------------
 *
 * remote.h
 *	  Connections to participants; see remote.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_REMOTE_H
#define COORD_REMOTE_H

#include "postgres.h"

#include "foreign/foreign.h"
#include "lib/ilist.h"
#include "libpq-fe.h"

/* Of one transaction, at most. */
#define COORD_MAX_PARTICIPANTS 64

/* Commands that are sent together, at most. */
#define REMOTE_BATCH 32

/* As much of a WARNING is kept. */
#define WARNING_SIZE 200

/* Statements that a connection keeps prepared. */
#define REMOTE_STATEMENTS 64

typedef enum RemoteState
{
	REMOTE_CLOSED,
	REMOTE_CONNECTING,
	REMOTE_ASKING,				/* who the server is */
	REMOTE_IDLE,				/* nothing is under way */
	REMOTE_BUSY,				/* a batch is */
	REMOTE_BROKEN				/* "conn" says why; to be closed */
} RemoteState;

typedef struct RemoteStatement
{
	char	   *sql;			/* NULL: free */
	int			number;
	uint64		used;
} RemoteStatement;

typedef struct Remote
{
	dlist_node	node;
	Oid			mapping;
	Oid			user;			/* whose mapping was asked for */
	Oid			serverid;
	char		server[NAMEDATALEN];
	uint32		server_hash;
	uint32		mapping_hash;
	bool		stale;			/* the definition has changed: connect anew when free */
	bool		in_use;
	bool		reset_prepared;
	bool		prepared;		/* all that was done since the last reset was prepared */
	int			skip;			/* answers to come, by Syncs, that nobody waits for */
	bool		must_use_password;
	bool		pooled;			/* a pooler is in between, sessions are not ours */
	bool		in_recovery;
	int			lock_timeout;	/* of its session, ms; 0: not known */
	RemoteState state;
	PGconn	   *conn;
	int64		connect_until;	/* remote_now() */
	short		connect_wants;	/* poll() events */
	const char **keywords;
	const char **values;

	/* The batch that is under way or was last. */
	int			ncommands;
	int			nanswered;
	bool		warned;			/* a WARNING came with it */
	char		warning[WARNING_SIZE];	/* the last one */
	PGresult   *results[REMOTE_BATCH];
	RemoteStatement *prepares[REMOTE_BATCH];	/* what a command is to prepare */

	RemoteStatement statements[REMOTE_STATEMENTS];
	int			next_statement;
	uint64		uses;
} Remote;

extern Remote *remote_find(ForeignServer *server, UserMapping *mapping);
extern void remote_start(Remote *remote);
extern void remote_connect(Remote *remote, int64 until);
extern void remote_batch(Remote *remote);
extern bool remote_add(Remote *remote, const char *sql, int nvalues, const char *const *values,
					   bool keep);
extern bool remote_go(Remote *remote);
extern int	remote_poll(Remote **list, int count, int64 us);
extern int64 remote_now(void);
extern bool remote_wait(Remote **list, int count, int64 until, bool interruptible);
extern bool remote_is_under_way(const Remote *remote);
extern void remote_cancel(Remote *remote, int64 until);
extern void remote_release(Remote *remote, bool told);
extern void remote_close(Remote *remote);
extern bool remote_succeeded(const Remote *remote, int command, const char *tag);
extern PGresult *remote_error(const Remote *remote);
extern const char *remote_sqlstate(const Remote *remote);
extern void remote_raise(const Remote *remote, const char *what);
extern UserMapping *remote_participant(const char *name, ForeignServer **server);

#endif							/* COORD_REMOTE_H */
