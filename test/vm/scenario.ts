/** What a scenario is, and what all of them need. */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { decodeDumpStats } from '../../lib/format/stats.ts'
import { root, run } from '../support/run.ts'

/** Debian's suites with CRIU 4.1, 4.2 and 4.3. */
export type Release = 'trixie' | 'sid' | 'experimental'
export const releases: readonly Release[] = ['trixie', 'sid', 'experimental']

export const criuOf = (release: Release): string => join(root, '.criu', release, 'criu')
export const releaseOf = (criu: string): string => basename(dirname(criu))

export interface Scenario {
  name: string
  /** Why it cannot be played, if it cannot. */
  missing?: (criu: string) => string | undefined
  /** With these only, of those that were fetched: by the name of Debian's suite. */
  releases?: readonly Release[]
  /** Throws if something is not as it must be; returns figures to be shown. */
  play(criu: string): Promise<string>
}

export function expect(is: boolean, what: string): void {
  if (!is) throw new Error(what)
}

export async function done(program: string, args: readonly string[]): Promise<void> {
  const { code, stderr } = await run(program, args)
  expect(code === 0, `${program} ${args.join(' ')}: exit code ${code}\n${stderr}`)
}

export const frozenMs = (directory: string): number =>
  decodeDumpStats(readFileSync(join(directory, 'stats-dump'))).frozenTime / 1000
export const percent = (part: number, whole: number): string => ((100 * part) / whole).toFixed(1)
export const pageBytes = (directory: string): number =>
  readdirSync(directory)
    .filter((name) => name.startsWith('pages-'))
    .reduce((sum, name) => sum + statSync(join(directory, name)).size, 0)

/** A dump that leaves the process as it is: how long one that sends everything takes. */
export async function fullDump(criu: string, pid: number, folder: string): Promise<{ bytes: number; frozen: number }> {
  const directory = join(folder, 'whole')
  mkdirSync(directory)
  await done(criu, ['dump', '-R', '-t', String(pid), '-D', directory])
  const seen = { bytes: pageBytes(directory), frozen: frozenMs(directory) }
  rmSync(directory, { recursive: true })
  return seen
}

/** Which of the releases could not be fetched, if any. */
export function without(...wanted: Release[]): string | undefined {
  const lost = wanted.filter((release) => !existsSync(criuOf(release)))
  return lost.length === 0 ? undefined : `no CRIU of ${lost.join(' and ')}`
}

/** What is played with a CRIU: everything, or what has FERRY_SCENARIO in its name. */
export function playedWith(criu: string, scenarios: readonly Scenario[]): Scenario[] {
  return scenarios
    .filter(({ releases }) => releases?.some((release) => releaseOf(criu) === release) ?? true)
    .filter(({ name }) => name.includes(process.env.FERRY_SCENARIO ?? ''))
}
