import type { FaultCode } from '../fault.ts'

/** The exit code for each code of a `Fault`. A command that a signal ends exits with 128 + its number. */
export const exitCodes: Record<FaultCode, number> = {
  USAGE: 2,
  LINK: 3,
  TRUNCATED: 4,
  TRAILING: 4,
  FORMAT: 4,
  VERSION: 4,
  NAME: 4,
  LIMIT: 4,
  DIGEST: 4,
  FAILED_DUMP: 4,
  CRIU: 5,
  CRIU_PROTOCOL: 5,
  TIMEOUT: 6,
  IO: 1,
  EXISTS: 1,
  MISSING: 1,
  MEMORY: 1,
  REFUSED: 1,
  ABORTED: 1,
}

/** The part of every usage text about exit codes. */
export const exitCodeHelp = `exit codes:
  0 done and verified   1 failed        2 wrong command line   3 connection failed
  4 damaged stream      5 criu failed   6 timed out            128+n ended by signal n`
