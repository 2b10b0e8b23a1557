/** Defaults that several rooms share. */

/** Where a process is held that is handed over without a cache, and where its source keeps verdicts. */
export const HOLD_DIRECTORY = '/run/criu-ferry'
