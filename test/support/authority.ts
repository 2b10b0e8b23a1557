/** A certification authority that the openssl program makes, for one test file. */
import { execFileSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { temporary } from './run.ts'

/** The lines of docs/security.md. */
export const authorityLine =
  'openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -subj /CN=ferry ' +
  '-keyout ca.key -out ca.pem'
export const requestLine =
  'openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=$H -addext ' +
  'subjectAltName=DNS:$H -keyout $H.key -out $H.csr'
export const signLine =
  'openssl x509 -req -in $H.csr -CA ca.pem -CAkey ca.key -CAcreateserial -copy_extensions copy -days 365 -out $H.pem'

export interface Authority {
  folder: string
  file(name: string): string
  /** Makes NAME.pem and NAME.key for the DNS name `host`. */
  issue(name: string, options?: { host?: string; days?: number; purpose?: string }): void
  /** Writes the list of all that were revoked so far, and of these. */
  revoke(list: string, ...names: string[]): void
  /** The options of a command that has the certificate NAME. */
  options(name: string): string[]
  remove(): void
}

/** Undefined, and said, where there is no openssl. */
export function authority(): Authority | undefined {
  try {
    execFileSync('openssl', ['version'], { stdio: 'ignore' })
  } catch {
    console.log('skipped: there is no openssl program on this machine')
    return undefined
  }
  const { path: folder, remove } = temporary()
  const run = (line: string, H = ''): void => {
    execFileSync('sh', ['-ec', line], { cwd: folder, env: { ...process.env, H }, stdio: ['ignore', 'ignore', 'pipe'] })
  }
  run(authorityLine)
  writeFileSync(join(folder, 'index.txt'), '')
  const config = '[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\ndefault_md=sha256\ndefault_crl_days=30\n'
  writeFileSync(join(folder, 'ca.cnf'), config)
  const ca = 'openssl ca -config ca.cnf -cert ca.pem -keyfile ca.key'
  const file = (name: string): string => join(folder, name)
  return {
    folder,
    file,
    issue(name, { host = 'localhost', days = 365, purpose } = {}) {
      run(requestLine, host)
      const sign = signLine.replace('-days 365', `-days ${days}`)
      run(purpose === undefined ? sign : `echo extendedKeyUsage=${purpose} >ext; ${sign} -extfile ext`, host)
      if (name !== host) run(`mv $H.key ${name}.key; mv $H.pem ${name}.pem`, host)
    },
    revoke(list, ...names) {
      for (const name of names) run(`${ca} -revoke ${name}.pem`)
      run(`${ca} -gencrl -out ${list}`)
    },
    options: (name) => [
      '--tls',
      ...['--tls-cacert', file('ca.pem')],
      ...['--tls-cert', file(`${name}.pem`)],
      ...['--tls-key', file(`${name}.key`)],
    ],
    remove,
  }
}
