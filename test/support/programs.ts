/**
 * Programs that tests need and that are not part of a plain system: fetched from Debian, once, beside the system's
 * packages.
 */
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { root } from './run.ts'

const folder = (name: string): string => join(root, '.criu', name)

export const redisServer = join(folder('redis'), 'redis-server')
export const sshd = join(folder('sshd'), 'sshd')
export const mandoc = join(folder('mandoc'), 'mandoc')
export const nft = join(folder('nftables'), 'nft')
export const vm = {
  qemu: join(folder('vm'), 'qemu'),
  kernel: join(folder('vm'), 'kernel', 'root'),
  busybox: join(folder('vm'), 'busybox', 'root', 'bin', 'busybox'),
}

/** The newest Node.js that calls itself a long-term release (process.release.lts); a package of npm brings it. */
const NODE_LTS = `node-linux-${process.arch}@24`
export const nodeLts = join(folder('node'), 'node_modules', `node-linux-${process.arch}`, 'bin', 'node')

/** What of Linux' modules a virtual machine can need: 300 MB of drivers are for machines that it is not. */
const keptModules = /\/kernel\/(arch|crypto|fs|lib|net|drivers\/(net\/[a-z]+\.ko|virtio))/

function dropDrivers(): void {
  for (const name of readdirSync(vm.kernel, { recursive: true, encoding: 'utf8' }))
    if (name.endsWith('.ko') && !keptModules.test(name)) rmSync(join(vm.kernel, name))
}

interface Program {
  /** Its folder below .criu/. */
  name: string
  what: string
  /** The arguments of scripts/fetch-debian.sh after the folder. */
  args: string[]
  after?: () => void
}

const programs: Program[] = [
  { name: 'redis', what: 'redis-server', args: ['/usr/bin/redis-server', '.', 'redis-server'] },
  { name: 'mandoc', what: 'mandoc, to check the man pages', args: ['/usr/bin/mandoc', '.', 'mandoc'] },
  { name: 'nftables', what: 'nft', args: ['/usr/sbin/nft', '.', 'nftables'] },
]
const forAll: Program[] = [{ name: 'sshd', what: 'sshd', args: ['/usr/sbin/sshd', '.', 'openssh-server'] }]
/**
 * The virtual machine. All of it is of Debian 12, also on others: its kernel 6.1 tracks changed pages, and it is the
 * same everywhere.
 */
const machine: Program[] = [
  { name: 'vm/busybox', what: 'busybox (1 MB)', args: ['-', 'bookworm', 'busybox-static'] },
  { name: 'vm/qemu', what: 'qemu (60 MB)', args: ['/usr/bin/qemu-system-x86_64', 'bookworm', 'qemu-system-x86'] },
  {
    name: 'vm/kernel',
    what: 'the kernel of Debian 12 (71 MB)',
    args: ['-', 'bookworm', 'linux-image-6[.]1[.]0-[0-9]+-amd64'],
    after: dropDrivers,
  },
]

/**
 * Fetches those that are not there yet, with a line for each; says so if one cannot be had. `everything`: also what
 * only the complete run needs.
 */
export function fetchPrograms(say: (text: string) => void, everything: boolean): void {
  const more = everything ? [...forAll, ...(process.arch === 'x64' ? machine : [])] : []
  for (const { name, what, args, after } of [...programs, ...more]) {
    if (existsSync(folder(name))) continue
    say(`fetching ${what} into .criu/${name} with apt-get (no package is installed)`)
    try {
      execFileSync(join(root, 'scripts', 'fetch-debian.sh'), [folder(name), ...args], { stdio: 'inherit' })
      after?.()
    } catch {
      say(`could not fetch ${what}`)
    }
  }
  if (everything) fetchNode(say)
}

function fetchNode(say: (text: string) => void): void {
  if (existsSync(nodeLts)) return
  say(`fetching ${NODE_LTS} into .criu/node with npm (60 MB)`)
  try {
    mkdirSync(folder('node'), { recursive: true })
    const into = ['--prefix', folder('node'), '--no-save', '--no-audit', '--no-fund']
    execFileSync('npm', ['install', ...into, NODE_LTS], { stdio: ['ignore', 'ignore', 'inherit'] })
  } catch {
    say(`could not fetch ${NODE_LTS}`)
  }
}
