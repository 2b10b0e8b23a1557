/** The real CRIU under test: FERRY_CRIU, or the one that the set-up chose. */
import { spawnSync } from 'node:child_process'
import { release } from 'node:os'
import { findCriu } from '../../lib/criu/run.ts'
import type { Load } from './loads.ts'

export interface RealCriu {
  path: string
  version: string
  /** Why a load cannot be dumped with it, if it cannot. */
  objection(load: Load): string | undefined
}

function look(): RealCriu | string {
  try {
    const path = findCriu()
    const version = /Version: (\S+)/.exec(spawnSync(path, ['--version'], { encoding: 'utf8' }).stdout)?.[1]
    if (version === undefined) return `${path} does not start`
    const check = spawnSync(path, ['check'], { encoding: 'utf8' })
    if (check.status !== 0) return `criu check fails: ${check.stderr.split('\n')[0]}`
    const [major = 0, minor = 0] = release().split('.').map(Number)
    const noSockets = version.startsWith('4.1') && (major > 6 || (major === 6 && minor >= 16))
    return {
      path,
      version,
      objection: (load) =>
        noSockets && load.sockets ? `CRIU ${version} cannot dump sockets on kernel ${release()}` : load.missing(),
    }
  } catch (error) {
    return (error as Error).message
  }
}

/** The CRIU, or why there is none. */
export const real = look()
