/*-------------------------------------------------------------------------
 *
 * access.h
 *	  What a caller may see and use, and the names of roles that own work.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_ACCESS_H
#define COORD_ACCESS_H

#include "postgres.h"

extern bool access_sees_all(Oid role);
extern bool access_may_act(Oid owner, const char *kind, const char *name);
extern bool access_role_is_noted(Oid role);
extern void access_note_role(Oid role);
extern void access_refresh_roles(void);

#endif							/* COORD_ACCESS_H */
