#include "postgres.h"
#include "saga/saga_task.h"
int64 queue_places(const char *queue, int64 definition, int count){ return 1; }
void queue_ready_at_commit(const char *queue, int64 rank, int64 position){}
void queue_resumed_at_commit(const char *queue){}
void queue_notify(void){}
TimestampTz task_sweep(void){ return 0; }
