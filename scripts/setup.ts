/**
 * Fetches CRIU beside the system's own packages, once, into .criu/ and picks the newest release that works here.
 * `--tests` fetches the other programs that `npm test` needs, `--all` every release of CRIU and of Node.js that the
 * tests run with, and a virtual machine. Without root, Debian or a mirror it says so and ends well: everything but the
 * runs with the real CRIU works without.
 */
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, rmSync, symlinkSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fetchPrograms } from '../test/support/programs.ts'

const root = dirname(import.meta.dirname)
const folder = join(root, '.criu')
const all = process.argv.includes('--all')

/** Newest first. 4.1.1 cannot dump a process with a socket on kernels from 6.16. */
const releases = [
  { name: 'experimental', suites: 'sid experimental', package: 'criu/experimental', seen: '4.3' },
  { name: 'sid', suites: 'sid', package: 'criu', seen: '4.2.1' },
  { name: 'trixie', suites: 'trixie', package: 'criu', seen: '4.1.1' },
] as const

function say(text: string): void {
  process.stderr.write(`setup: ${text}\n`)
}

function version(criu: string): string | undefined {
  const { status, stdout } = spawnSync(criu, ['--version'], { encoding: 'utf8' })
  return status === 0 ? /Version: (\S+)/.exec(stdout)?.[1] : undefined
}

/** What `criu check` says against this machine, or undefined if it is content. */
function objection(criu: string): string | undefined {
  const { status, stderr } = spawnSync(criu, ['check'], { encoding: 'utf8' })
  if (status === 0) return undefined
  return stderr.split('\n').find((line) => line.includes('Error')) ?? `exit code ${status}`
}

function pick(criu: string): boolean {
  const found = version(criu)
  const problem = found === undefined ? 'it does not start' : objection(criu)
  if (problem !== undefined) say(`${criu} cannot be used here: ${problem}`)
  return problem === undefined
}

if (process.env.FERRY_CRIU !== undefined && !all) {
  say(`FERRY_CRIU=${process.env.FERRY_CRIU} is set: nothing to fetch`)
  process.exit(0)
}
mkdirSync(folder, { recursive: true })
let chosen: string | undefined
for (const release of releases) {
  if (chosen !== undefined && !all) break
  const criu = join(folder, release.name, 'criu')
  if (!existsSync(criu) && process.geteuid?.() === 0) {
    say(`fetching criu from Debian ${release.name} into .criu/ with apt-get (8 MB; no package is installed)`)
    const fetch = join(root, 'scripts', 'fetch-debian.sh')
    try {
      execFileSync(fetch, [join(folder, release.name), '/usr/sbin/criu', release.suites, release.package])
    } catch {
      say(`could not fetch criu from Debian ${release.name}`)
    }
  }
  if (!existsSync(criu)) continue
  const found = version(criu)
  if (found !== release.seen) say(`Debian ${release.name} has moved on: criu ${found}, tried was ${release.seen}`)
  if (chosen === undefined && pick(criu)) chosen = release.name
}
const current = join(folder, 'current')
rmSync(current, { force: true })
if (chosen === undefined) say('no criu that works here: the runs with the real CRIU are left out')
else {
  symlinkSync(chosen, current)
  say(`criu ${version(join(current, 'criu'))} from Debian ${chosen} will be used`)
}
if (all || process.argv.includes('--tests')) fetchPrograms(say, all)
