/**
 * A real sshd on loopback, on the second host, with keys and a user table of its own. Our commands have their installed
 * names there.
 */
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { basename, join } from 'node:path'
import type { Host } from './host.ts'
import { sshd } from './programs.ts'
import { root, start, temporary } from './run.ts'

export interface Sshd {
  /** For `ssh -F`; knows the sshd as `host`. */
  config: string
  stop(): Promise<void>
}

/** Starts it in `host`, or says why it cannot. */
export async function startSshd(host: Host): Promise<Sshd | string> {
  if (process.geteuid?.() !== 0) return 'sshd needs root here'
  if (!existsSync(sshd)) return 'openssh-server could not be fetched'
  if (!existsSync('/usr/bin/ssh')) return 'no ssh on this machine'
  const { path, remove } = temporary()
  const file = (name: string, text: string): string => {
    writeFileSync(join(path, name), text, { mode: 0o600 })
    return join(path, name)
  }
  for (const key of ['host', 'user']) {
    execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', join(path, key)])
  }
  // Read with the rights of whoever logs in.
  execFileSync('chmod', ['711', path])
  const port = await freePort()
  const users = readFileSync('/etc/passwd', 'utf8')
  file('passwd', `${users}sshd:x:64999:65534::/run/sshd:/usr/sbin/nologin\n`)
  execFileSync('chmod', ['644', join(path, 'passwd')])
  const bin = join(path, 'bin')
  installCommands(bin)
  const server = [
    `ListenAddress 127.0.0.1:${port}`,
    `HostKey ${join(path, 'host')}`,
    `AuthorizedKeysFile ${join(path, 'user.pub')}`,
    'UsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\nPidFile none',
    `SetEnv PATH=${bin}:${process.env.PATH} FERRY_CRIU=${process.env.FERRY_CRIU ?? ''}`.replace(/ FERRY_CRIU=$/, ''),
  ]
  const config = [
    'Host host',
    `  HostName 127.0.0.1\n  Port ${port}\n  User root\n  IdentityFile ${join(path, 'user')}`,
    `  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n  BatchMode yes`,
  ]
  mkdirSync(join(path, 'run'), { mode: 0o755 })
  const line = [
    `mount --bind ${join(path, 'passwd')} /etc/passwd`,
    'mkdir -p /run/sshd && chmod 755 /run/sshd',
    `exec ${sshd} -D -e -r -f ${file('sshd_config', `${server.join('\n')}\n`)}`,
  ]
  const [enter = '', ...options] = host.enter
  const daemon = start(enter, [...options, 'sh', '-ec', line.join('\n')])
  await daemon.says(/Server listening/)
  return {
    config: file('ssh_config', `${config.join('\n')}\n`),
    async stop() {
      await daemon.stop()
      remove()
    },
  }
}

/** Makes a directory with the commands of package.json, which start those of the checkout. */
function installCommands(directory: string): void {
  const { bin } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { bin: Record<string, string> }
  mkdirSync(directory, { mode: 0o755 })
  for (const [name, program] of Object.entries(bin)) {
    const command = join(root, 'scripts', 'bin', basename(program, '.js'))
    writeFileSync(join(directory, name), `#!/bin/sh\nexec ${command} "$@"\n`, { mode: 0o755 })
  }
}

async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, '127.0.0.1')
  await new Promise((resolve) => server.once('listening', resolve))
  const { port } = server.address() as net.AddressInfo
  await new Promise((resolve) => server.close(resolve))
  return port
}
