"""Runs the engine, the API, the worker and the beat as child processes of one command on one machine.

`plan` says which children there are and how each is started; `child` starts and ends one; `supervise` starts all, waits
until they are ready, restarts what dies and stops everything; `folder` owns the data folder's lock and the note that
tells other commands where the parts listen; `first_run` prepares the database. Called by `mulligan up` and
`mulligan demo`. It must never look inside a request or a round: it only knows processes and their health.
"""
