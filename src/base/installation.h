/*-------------------------------------------------------------------------
 *
 * installation.h
 *	  Is coord here, is it the version this library is for, may it act?
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_INSTALLATION_H
#define COORD_INSTALLATION_H

#include "postgres.h"
#include "storage/lockdefs.h"

typedef enum EngineState
{
	ENGINE_RUNNING,
	ENGINE_DISABLED,			/* coord.enabled is off */
	ENGINE_PAUSED,				/* coord.pause() */
	ENGINE_COPY					/* this database is a copy: coord.resume() */
} EngineState;

extern bool installation_exists(void);
extern void installation_check(void);
extern bool installation_lock(LOCKMODE mode);
extern bool installation_try_lock(LOCKMODE mode);
extern EngineState installation_state(void);
extern bool installation_is_foreign(void);
extern bool installation_is_copy(void);
extern void installation_check_not_foreign(void);
extern void installation_state_changed(void);
extern int64 installation_home(void);
extern const char *installation_state_text(EngineState state);

#endif							/* COORD_INSTALLATION_H */
