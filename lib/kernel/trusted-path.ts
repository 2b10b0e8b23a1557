/**
 * Whether nobody but root and us can change where a path leads to.
 *
 * Each part from / on belongs to root or to us and is writable by nobody else, links on the way too. A part whose
 * parents have passed cannot be exchanged by others any more, so what was seen of it stays true, and so does the path
 * that is returned, which has no links. In a sticky directory (/tmp) others may make entries, but not touch ours.
 */
import { lstatSync, readFileSync, readlinkSync, type Stats } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { Fault } from '../fault.ts'

export interface TrustRule {
  /** What to do instead: for the hint of a refusal. */
  otherwise: string
  /** It may be sticky and writable by all: we make a directory of our own in it, or did so. */
  parent?: boolean
  /** A file of our own program: who can exchange that is trusted, as we run it already. */
  program?: string
}

/** As many as the kernel follows. */
const MOST_LINKS = 40
const STICKY = 0o1000

/** The path without its links. Throws `USAGE` with the part that others can change, `MISSING` and `IO`. */
export function trustedPath(path: string, rule: TrustRule): string {
  const owners = new Set([0, process.geteuid?.() ?? 0])
  if (rule.program !== undefined) owners.add(lstatSync(rule.program).uid)
  const names = partsOf(resolve(path))
  let real = '/'
  check(real, look(real), { ...rule, owners, last: names.length === 0 })
  for (let links = 0; names.length > 0; ) {
    const name = names.shift() ?? ''
    if (name === '..') {
      real = dirname(real)
      continue
    }
    const part = join(real, name)
    const found = look(part)
    if (!found.isSymbolicLink()) {
      check(part, found, { ...rule, owners, last: names.length === 0 })
      real = part
      continue
    }
    if (!owners.has(found.uid)) throw foreign(part, found.uid, rule)
    if (++links > MOST_LINKS) throw new Fault('MISSING', `${path} has links that lead in a circle`)
    const target = readlinkSync(part)
    if (target.startsWith('/')) real = '/'
    names.unshift(...partsOf(target))
  }
  return real
}

function partsOf(path: string): string[] {
  return path.split('/').filter((name) => name !== '' && name !== '.')
}

function look(part: string): Stats {
  try {
    return lstatSync(part)
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    if (code === 'ENOENT') throw new Fault('MISSING', `there is no ${part}`, { cause })
    throw new Fault('IO', `${part} cannot be looked at (${code})`, {
      hint: 'run this as root, or as the user whom it belongs to',
      cause,
    })
  }
}

function check(
  part: string,
  { uid, mode }: Stats,
  { owners, last, parent, program, ...rule }: TrustRule & { owners: ReadonlySet<number>; last: boolean },
): void {
  if (program !== undefined && isAbove(part, program)) return
  if (!owners.has(uid)) throw foreign(part, uid, rule)
  if ((mode & 0o022) === 0) return
  const sticky = (mode & STICKY) !== 0
  if (sticky && (!last || parent)) return
  const who = (mode & 0o002) === 0 ? 'its group' : 'everybody'
  const hint = sticky ? `name one below it, such as ${join(part, 'ferry')}` : `chmod go-w ${part}, or ${rule.otherwise}`
  throw new Fault('USAGE', `${part} can be written by ${who}`, { hint })
}

function isAbove(part: string, file: string): boolean {
  return part === '/' || file.startsWith(`${part}/`)
}

function foreign(part: string, uid: number, { otherwise }: TrustRule): Fault {
  return new Fault('USAGE', `${part} belongs to ${userName(uid)}`, { hint: otherwise })
}

/** A user for a message: `user 65534 (nobody)`. */
export function userName(uid: number): string {
  let users = ''
  try {
    users = readFileSync('/etc/passwd', 'utf8')
  } catch {}
  const [, name] = new RegExp(`^([^:\n]*):[^:\n]*:${uid}:`, 'm').exec(users) ?? []
  return name === undefined ? `user ${uid}` : `user ${uid} (${name})`
}
