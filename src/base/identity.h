/*-------------------------------------------------------------------------
 *
 * identity.h
 *	  Who is acting: the extension's owner for coord's tables, the owner of
 *	  the work for user code.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_IDENTITY_H
#define COORD_IDENTITY_H

#include "postgres.h"
#include "utils/uuid.h"

typedef struct Identity
{
	Oid			user;
	int			security_context;
} Identity;

extern void identity_become_extension_owner(Identity *saved);
extern void identity_restore(const Identity *saved);

/* Running user code.  See identity.c for the contract. */
typedef struct UserScope
{
	Identity	identity;
	int			guc_level;
} UserScope;

extern void identity_enter_user(UserScope *scope, Oid role, const char *search_path);
extern void identity_leave_user(UserScope *scope);
extern int	identity_enter_call(const char *correlation_id);
extern void identity_leave_call(int guc_level);
extern void identity_forget_session(void);
extern void identity_session_is_worker(void);
extern bool identity_is_worker(void);

#endif							/* COORD_IDENTITY_H */
