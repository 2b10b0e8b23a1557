import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { decodeDumpStats } from '../format/stats.ts'

/**
 * How long the tasks were frozen, by the statistics that CRIU left in `directory`. Undefined where CRIU has not written
 * them: it does so last.
 */
export function frozenMs(directory: string): number | undefined {
  try {
    return decodeDumpStats(readFileSync(join(directory, 'stats-dump'))).frozenTime / 1000
  } catch {
    return undefined
  }
}
