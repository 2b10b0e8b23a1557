/**
 * A virtual machine with Debian's 6.1 kernel, for what this machine's kernel may not have: it tracks changed pages
 * (soft-dirty). There is no disk image: its root is ours, read-only, with directories of its own where a system writes.
 * qemu emulates the processor, so it runs wherever the tests run, five to ten times slower.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { vm } from './programs.ts'
import { root, temporary } from './run.ts'

export interface VmJob {
  /** A command line of the host's programs. It sees the project where it is here, but /tmp is empty. */
  command: readonly string[]
  /** A directory that it may write into, at the same path. */
  share: string
  /** The machine is switched off after that long, in ms. */
  limitMs: number
  memoryMib?: number
  cpus?: number
}

export interface VmRan {
  /** 125 if the machine ended before the job. */
  code: number
  output: string
  /** From qemu's start to the start of the job, in ms. */
  bootMs: number
  jobMs: number
}

/** In the order in which they go in, each behind what it needs; those that are part of the kernel have no file. */
const wantedModules = [
  ...['virtio_pci', '9pnet_virtio', '9p', 'unix_diag', 'inet_diag', 'tcp_diag', 'udp_diag', 'raw_diag', 'netlink_diag'],
  ...['af_packet_diag', 'crc32c_generic', 'nf_tables', 'nft_ct', 'veth', 'tun'],
]

/** Why there is no virtual machine here, if there is none. */
export function vmMissing(): string | undefined {
  if (process.arch !== 'x64') return 'the virtual machine is an x86-64 one, and so must the host be'
  const missing = Object.values(vm).find((path) => !existsSync(path))
  return missing && `no ${missing}: npm run setup -- --all fetches it, on Debian, as root`
}

/** The files of the modules and of all that they need, which each module names itself. */
function moduleFiles(): string[] {
  const files = readdirSync(vm.kernel, { recursive: true, encoding: 'utf8' }).filter((name) => name.endsWith('.ko'))
  const byName = new Map(files.map((file) => [basename(file, '.ko').replaceAll('-', '_'), join(vm.kernel, file)]))
  const found = new Set<string>()
  const take = (name: string): void => {
    const file = byName.get(name.replaceAll('-', '_'))
    if (file === undefined || found.has(file)) return
    const needs = /\0depends=([^\0]*)\0/.exec(readFileSync(file, 'latin1'))?.[1] ?? ''
    for (const need of needs.split(',').filter(Boolean)) take(need)
    found.add(file)
  }
  wantedModules.forEach(take)
  return [...found]
}

/** An archive as the kernel takes it for its first root: cpio, `newc`. */
function cpio(files: ReadonlyMap<string, Buffer | 'directory'>): Buffer {
  const parts: Buffer[] = []
  const padded = (bytes: Buffer): void => void parts.push(bytes, Buffer.alloc(-bytes.length & 3))
  let inode = 0
  const entry = (name: string, mode: number, data: Buffer): void => {
    const fields = [++inode, mode, 0, 0, 1, 0, data.length, 0, 0, 0, 0, name.length + 1, 0]
    const hex = fields.map((field) => field.toString(16).padStart(8, '0')).join('')
    padded(Buffer.from(`070701${hex}${name}\0`))
    padded(data)
  }
  for (const [name, data] of files)
    if (data === 'directory') entry(name, 0o040755, Buffer.alloc(0))
    else entry(name, 0o100755, data)
  entry('TRAILER!!!', 0, Buffer.alloc(0))
  return Buffer.concat(parts)
}

const quoted = (word: string): string => `'${word.replaceAll("'", "'\\''")}'`

function firstRoot({ command, share }: VmJob): Buffer {
  const job =
    `export PATH=${quoted(process.env.PATH ?? '')} HOME=/root LANG=C.UTF-8\nexec ` +
    `${command.map(quoted).join(' ')}\n`
  const modules = moduleFiles().map(
    (file, index) => [`modules/${String(index).padStart(2, '0')}`, readFileSync(file)] as const,
  )
  return cpio(
    new Map<string, Buffer | 'directory'>([
      ['bin', 'directory'],
      ['modules', 'directory'],
      ['bin/busybox', readFileSync(vm.busybox)],
      ['init', readFileSync(join(import.meta.dirname, 'vm-init.sh'))],
      ['places', Buffer.from(`project=${quoted(root)} share=${quoted(share)}\n`)],
      ['job', Buffer.from(job)],
      ...modules,
    ]),
  )
}

/**
 * Boots a virtual machine, runs a job in it and switches it off. Every line that the job writes is passed to `hear` at
 * once.
 */
export async function runInVm(job: VmJob, hear: (line: string) => void = () => {}): Promise<VmRan> {
  const { path, remove } = temporary()
  const kernel = readdirSync(join(vm.kernel, 'boot')).find((name) => name.startsWith('vmlinuz-')) ?? 'vmlinuz'
  const first = join(path, 'initramfs')
  writeFileSync(first, firstRoot(job))
  const data = (folder: string): string => join(vm.qemu, 'root', 'usr', folder)
  const shared = (tag: string, from: string, how: string): string[] => [
    '-virtfs',
    `local,path=${from},mount_tag=${tag},security_model=none,multidevs=remap${how}`,
  ]
  const qemu = [
    ...[
      '-L',
      data('share/qemu'),
      '-L',
      data('share/seabios'),
      '-M',
      'q35',
      '-accel',
      'tcg,thread=multi',
      '-cpu',
      'max',
    ],
    ...['-smp', String(job.cpus ?? 2), '-m', String(job.memoryMib ?? 3072)],
    ...['-nographic', '-nodefaults', '-no-reboot', '-serial', 'stdio'],
    ...['-kernel', join(vm.kernel, 'boot', kernel), '-initrd', first],
    ...['-append', 'console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off'],
    ...shared('root', '/', ',readonly=on'),
    ...shared('project', root, ',readonly=on'),
    ...shared('share', job.share, ''),
  ]
  const begun = performance.now()
  let [up, code, output, rest] = [begun, 125, '', '']
  // It must not outlive us, whatever ends us.
  const child = spawn('setpriv', ['--pdeathsig', 'KILL', join(vm.qemu, 'qemu-system-x86_64'), ...qemu], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, QEMU_MODULE_DIR: data('lib/x86_64-linux-gnu/qemu') },
  })
  const timer = setTimeout(() => child.kill('SIGKILL'), job.limitMs)
  const line = (text: string): void => {
    if (/vm: up$/.test(text)) up = performance.now()
    else if (up === begun) output += text.includes('Booting from ROM') || text.includes('SeaBIOS') ? '' : `${text}\n`
    else if (/^vm: exit code \d+$/.test(text)) code = Number(text.split(' ').at(-1))
    else {
      output += `${text}\n`
      hear(text)
    }
  }
  const take = (text: string): void => {
    const lines = (rest + text).replaceAll('\r', '').split('\n')
    rest = lines.pop() ?? ''
    lines.forEach(line)
  }
  child.stdout.setEncoding('utf8').on('data', take)
  child.stderr.setEncoding('utf8').on('data', take)
  try {
    await once(child, 'close')
  } finally {
    clearTimeout(timer)
    remove()
  }
  if (performance.now() - begun >= job.limitMs) output += `vm: switched off after ${job.limitMs / 1000} s\n`
  return { code, output, bootMs: up - begun, jobMs: performance.now() - up }
}
